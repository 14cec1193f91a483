"""A packed network as a file that other runtimes read: one file a form, behind one registry."""
