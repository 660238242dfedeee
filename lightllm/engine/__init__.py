"""StepPlan -> tensors -> StepResult: the model on its device, with the tables that step plans refer to."""
