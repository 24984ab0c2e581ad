"""The processes of one pipeline: how they find each other, agree and connect."""
