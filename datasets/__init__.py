"""Data: MVTec AD, MVTec LOCO AD, folders of own classes, the demo set, download and decode cache."""
