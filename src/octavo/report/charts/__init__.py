"""The charts of a report, in Vega-Lite by Altair; needs the extra ``octavo[report]``."""
