"""A discrete-event simulator that runs the server's own scheduler, policies, estimators and prefix tree."""
