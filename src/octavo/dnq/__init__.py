"""DNQ, dynamic network quantization: a policy learns the bits of each layer.

Read ``searching`` first, then ``environment``, ``agent``, ``distribution``, ``policy``,
``reinforce`` and ``finalists``.
"""
