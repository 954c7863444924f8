"""The Python interface: HyLoRADAConfig and HyLoRADAModel."""
