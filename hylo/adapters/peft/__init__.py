"""Methods of the `peft` library as components."""
