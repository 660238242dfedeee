"""HTTP: the dialects that clients speak, streaming, errors, access, and the frontend process."""
