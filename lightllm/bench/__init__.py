"""Measuring: workloads, the hardware's bound, offline runs, a load client for servers, and reports."""
