"""One file per `model_type`, a shared decoder skeleton, the config reader, the checkpoint reader and the registry."""
