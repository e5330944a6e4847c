# Targets of the lab; included by the top Makefile. See tests/lab/README.md.
PYTHON ?= build/venv/bin/python

.PHONY: lab-image lab-kvm lab-xen

lab-image: ## build the lab's base image (once per recipe; kept in the user's cache folder)
	$(PYTHON) -m tests.lab.image

lab-kvm: ## a shell in a disposable libvirt/KVM host
	@$(PYTHON) -m tests.lab.shell kvm

lab-xen: ## a shell in a disposable Xen host
	@$(PYTHON) -m tests.lab.shell xen
