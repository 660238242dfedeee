"""Op contracts, their torch references (which are the CPU backend), and faster implementations behind the same door."""
