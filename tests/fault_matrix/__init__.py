"""The fault matrix: every fault Tollgate has an answer to, and what shows that the answer holds."""
