"""NVIDIA Apex's names."""
