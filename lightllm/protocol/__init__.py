"""What crosses a process or a floor: sampling parameters, messages, step plans, and their codec."""
