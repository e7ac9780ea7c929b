"""Recipes: a task a file, each a whole readable script; `running` holds what training needs in all of them."""
