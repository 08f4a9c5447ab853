"""The same ranker and bodies through other Python servers and through Slimrank's service."""
