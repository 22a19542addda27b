# Mutation testing of theory/, with the extras `test` and `mutants` installed.
#   make mutants                        every module; a run that is stopped goes on where it was
#   make mutants MODULE=theory.onset    one module, every mutant again
# Results are kept in mutants/ and do not see that a test has changed: remove the folder to begin anew.
JOBS ?= 1

.PHONY: mutants
mutants:
	HYPOTHESIS_PROFILE=mutants OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		mutmut run --max-children $(JOBS) $(if $(MODULE),'$(MODULE).*')
	mutmut results | sed '/: not checked/d'
