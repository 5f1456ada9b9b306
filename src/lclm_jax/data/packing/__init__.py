"""Records to packed rows.

``row_packer`` chooses the examples of a row, ``windows`` places their windows in its encoder rows, ``rows`` writes the
arrays.
"""
