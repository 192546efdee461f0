"""Devices and hosts: who computes what, and the operations that are fastest there."""
