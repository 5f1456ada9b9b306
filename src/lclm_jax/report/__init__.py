"""Reports of runs and studies, pages of packed rows, tables of plans.

``document`` renders blocks as Markdown and as HTML; ``run`` and ``study`` build them; ``plots`` is the shared style.
"""
