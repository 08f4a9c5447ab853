"""The session line: next-item rankers whose item table becomes codes and codebooks."""
