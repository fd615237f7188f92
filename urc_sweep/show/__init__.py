"""Tables to facts (DataFrames), facts to figures (Plotly), both to one self-contained ``report.html``."""
