"""Many runs over one config: named methods × budgets × seeds, a table of them and its report."""
