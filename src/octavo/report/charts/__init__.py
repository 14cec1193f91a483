"""The charts of a report, in Vega-Lite by Altair; this room needs the extra ``octavo[report]``."""
