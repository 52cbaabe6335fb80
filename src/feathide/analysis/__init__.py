"""Why adversarial examples are caught, and who else is: the paper's analyses on the classifier,
the store and the table of an audit.
"""
