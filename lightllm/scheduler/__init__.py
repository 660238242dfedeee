"""Who runs next: requests, order policies, length estimators, the future peak, and the step planner. No torch."""
