"""What each command does, without the parsing: a whole job a person asks for, composed of the rooms to the left."""
