package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	securityv1 "github.com/openshift/api/security/v1"
	corev1 "k8s.io/api/core/v1"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	"sigs.k8s.io/yaml"
)

// The constraints for launchers with a sidecar allow what KubeVirt's own allow, and NET_ADMIN, and nothing else. Volumes are
// written out: KubeVirt leaves them to OpenShift's default.
func TestOpenShiftConstraints(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "manifests", "openshift", "constraints.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var ours securityv1.SecurityContextConstraints
	if err := yaml.UnmarshalStrict(raw, &ours); err != nil {
		t.Fatal(err)
	}
	theirs := components.NewKubeVirtControllerSCC("kubevirt")
	want := theirs.DeepCopy()
	want.ObjectMeta = ours.ObjectMeta
	want.AllowedCapabilities = append(want.AllowedCapabilities, "NET_ADMIN")
	want.AllowPrivilegeEscalation = new(bool)
	*want.AllowPrivilegeEscalation = true // the default
	want.FSGroup.Type, want.SupplementalGroups.Type = securityv1.FSGroupStrategyRunAsAny, securityv1.SupplementalGroupsStrategyRunAsAny
	want.Groups, want.Volumes = []string{}, ours.Volumes
	if diff := cmp.Diff(want, &ours); diff != "" {
		t.Errorf("constraints (-KubeVirt's with NET_ADMIN +floatip's):\n%s", diff)
	}
	for _, needed := range []securityv1.FSType{securityv1.FSTypeEmptyDir, securityv1.FSTypeDownwardAPI, securityv1.FSTypeHostPath, securityv1.FSTypePersistentVolumeClaim} {
		if !slices.Contains(ours.Volumes, needed) {
			t.Errorf("volumes of type %s are not allowed", needed)
		}
	}
	if slices.Contains(theirs.AllowedCapabilities, corev1.Capability("NET_ADMIN")) {
		t.Error("KubeVirt's own constraints allow NET_ADMIN by now: floatip's are needed no more")
	}
}
