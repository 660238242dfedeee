"""Triton implementations of the ops, for CUDA devices from compute capability 8.0 up.

Every kernel waits for its predecessor in every program before it touches anything the predecessor made, so all of
them may be launched with programmatic dependent launch, in any order, inside and outside CUDA graphs.
"""
