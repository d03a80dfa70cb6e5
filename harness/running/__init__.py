"""How a study is started, checked beforehand and carried out: stages, processes, failures."""
