"""Loop files written or changed for people: new ones, repairs, other names, the schema for editors."""
