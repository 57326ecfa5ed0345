"""GRASP and StochGRASP as PEFT methods, and the adapters that they are compared with."""
