"""The rivals of the policy: other ways to choose bits, behind the same count of evaluations."""
