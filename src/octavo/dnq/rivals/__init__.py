"""The rivals of the policy: other methods that choose bits, with the same count of evaluations."""
