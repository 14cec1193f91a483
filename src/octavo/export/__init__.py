"""Deployment: a packed network as an ONNX file or as MXFP4 and MXFP8 tensors."""

from octavo.export.exporting import FORMS, Exported, Form, check_forms, export, export_checked, load_onnx

__all__ = ["FORMS", "Exported", "Form", "check_forms", "export", "export_checked", "load_onnx"]
