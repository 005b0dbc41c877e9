"""Histories, their checker, and workloads that record them."""
