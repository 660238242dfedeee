"""What this machine is: which device serves, how much memory it has, what it can do."""
