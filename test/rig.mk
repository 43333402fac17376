# Builds the programs of the rig into bin/rig: Kubernetes' servers from test/kubernetes, KubeVirt's control plane and
# the rig's commands that use KubeVirt's packages from test/kubevirt. Included by the Makefile; paths are its own.
#
# The servers are built again only when their module's go.mod or go.sum changes, or a flag here: the name of a stamp
# file holds a hash of these. KUBEBUILDER_ASSETS, where set, names a folder with kube-apiserver, etcd and kubectl
# (the binaries of controller-runtime's envtest); those are used instead of building them.

RIG_BIN := $(CURDIR)/bin/rig

# A server built without these calls itself v0.0.0-master, and clients compare versions.
KUBERNETES_VERSION := $(shell awk '$$1 == "k8s.io/kubernetes" {print $$2}' test/kubernetes/go.mod)
kubernetes_minor := $(word 2,$(subst ., ,$(KUBERNETES_VERSION)))
version_package := k8s.io/component-base/version
kubernetes_flags := -trimpath -buildvcs=false -ldflags '-s -w -X $(version_package).gitVersion=$(KUBERNETES_VERSION) \
	-X $(version_package).gitMajor=1 -X $(version_package).gitMinor=$(kubernetes_minor)'
kubevirt_flags := -trimpath -buildvcs=false -ldflags '-s -w'

etcd_package := go.etcd.io/etcd/server/v3
kubernetes_programs := etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet
kubevirt_programs := virt-api virt-controller virt-chroot
kubevirt_commands := $(sort $(notdir $(patsubst %/,%,$(dir $(wildcard test/kubevirt/cmd/*/*.go)))))

# key FLAGS MODULE: what the built programs of a module depend on, as 16 hex digits.
key = $(shell { echo "$(subst ','\'',$(subst ",\",$1))" "$(KUBEBUILDER_ASSETS)"; go env GOVERSION GOARCH; \
	cat $2/go.mod $2/go.sum; } | sha256sum | cut -c1-16)
kubernetes_stamp := $(RIG_BIN)/.kubernetes-$(call key,$(kubernetes_flags),test/kubernetes)
kubevirt_stamp := $(RIG_BIN)/.kubevirt-$(call key,$(kubevirt_flags),test/kubevirt)

# Commands of the main module that run on the rig's nodes.
rig_commands := kubelet-standin pause real-node virt-launcher-standin

.PHONY: rig-binaries
rig-binaries: $(kubernetes_stamp) $(kubevirt_stamp) $(rig_commands:%=$(RIG_BIN)/%)
rig-binaries: $(RIG_BIN)/cert-manager $(RIG_BIN)/kubevirt19-definitions.json
rig-binaries: $(kubevirt_commands:%=$(RIG_BIN)/%) ## build the control plane that the rig runs; minutes at first, then kept

# build_one DIRECTORY FLAGS NAME PACKAGE, as a shell command. CGO is off: no program depends on the C library. The new
# program takes the place of the old one by a rename: a rig that runs keeps its own, and what was there may be a link into
# KUBEBUILDER_ASSETS.
build_one = echo "  building $3 ($4)" && (cd $1 && CGO_ENABLED=0 go build $2 -o $(RIG_BIN)/.$3.new $4 && \
	mv -f $(RIG_BIN)/.$3.new $(RIG_BIN)/$3)
package_of = $(if $(filter etcd,$1),$(etcd_package),k8s.io/kubernetes/cmd/$1)
asset = $(KUBEBUILDER_ASSETS)/$1
has_asset = $(and $(KUBEBUILDER_ASSETS),$(wildcard $(asset)))
provide = $(if $(has_asset),echo "  using $(asset)" && ln -sf $(asset) $(RIG_BIN)/$1,$(call \
	build_one,test/kubernetes,$(kubernetes_flags),$1,$(call package_of,$1)))

define newline


endef

$(kubernetes_stamp):
	@mkdir -p $(RIG_BIN) && rm -f $(RIG_BIN)/.kubernetes-*
	@echo "building Kubernetes $(KUBERNETES_VERSION) for the rig: 10 to 20 minutes on two cores with an empty build cache"
	$(foreach program,$(kubernetes_programs),@$(call provide,$(program))$(newline)	)
	@touch $@

$(kubevirt_stamp): | $(kubernetes_stamp)
	@mkdir -p $(RIG_BIN) && rm -f $(RIG_BIN)/.kubevirt-*
	@echo "building KubeVirt's control plane for the rig: 3 to 8 minutes on two cores with an empty build cache"
	$(foreach program,$(kubevirt_programs),@$(call \
		build_one,test/kubevirt,$(kubevirt_flags),$(program),kubevirt.io/kubevirt/cmd/$(program))$(newline)	)
	@touch $@

# The rig's own commands change with their sources; Go's build cache makes that a matter of linking.
$(kubevirt_commands:%=$(RIG_BIN)/%): $(RIG_BIN)/%: $(kubevirt_stamp) $(shell find test/kubevirt -name '*.go')
	@$(call build_one,test/kubevirt,$(kubevirt_flags),$*,./cmd/$*)

$(rig_commands:%=$(RIG_BIN)/%): $(RIG_BIN)/%: go.mod $(shell find test/rig -name '*.go' -not -name '*_test.go')
	@mkdir -p $(RIG_BIN)
	@$(call build_one,.,-trimpath -buildvcs=false -ldflags '-s -w',$*,./test/rig/cmd/$*)

# cert-manager's definitions come with its module.
$(RIG_BIN)/cert-manager: $(shell find test/certmanager -type f)
	@mkdir -p $(RIG_BIN)/cert-manager-crds
	@$(call build_one,test/certmanager,-trimpath -buildvcs=false -ldflags '-s -w',cert-manager,./cmd/cert-manager)
	@cd test/certmanager && cp -f $$(go list -m -f '{{.Dir}}' github.com/cert-manager/cert-manager)/deploy/crds/*.yaml $(RIG_BIN)/cert-manager-crds/
	@chmod -R u+w $(RIG_BIN)/cert-manager-crds

# KubeVirt v1.9's definitions, by a command that is built with the files of its package that make them.
kubevirt19_command := test/kubevirt19/cmd/kubevirt-definitions/main.go
kubevirt19_sources := pkg/virt-operator/resource/generate/components
$(RIG_BIN)/kubevirt19-definitions.json: $(kubevirt19_command) test/kubevirt19/go.mod test/kubevirt19/go.sum
	@echo "  making $(notdir $@)"
	@rm -rf $@.src && mkdir -p $@.src && cp $(kubevirt19_command) $@.src
	@cd test/kubevirt19 && for file in crds validations_generated; do sed 's/^package components$$/package main/' \
		$$(go list -m -f '{{.Dir}}' kubevirt.io/kubevirt)/$(kubevirt19_sources)/$$file.go > $@.src/$$file.go || exit; done
	@cd test/kubevirt19 && CGO_ENABLED=0 go run $@.src/main.go $@.src/crds.go $@.src/validations_generated.go > $@.new
	@rm -rf $@.src && mv -f $@.new $@
