"""Pure decisions and texts: values in, values out. No module here reads a file, a clock or a
network."""
