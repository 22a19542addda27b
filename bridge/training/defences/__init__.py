"""Updates projected off what a skill is sensitive to, while a model is trained."""
