"""Any method of the peft library as a component."""
