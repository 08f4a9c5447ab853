"""The online ranking service: loads bundles and answers POST /rank."""
