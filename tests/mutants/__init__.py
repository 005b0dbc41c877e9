"""Mutants: the package with one guard taken out on purpose. The tests named with each must fail on it."""
