package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	kubevirtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"floatip.io/floatip"
	"floatip.io/floatip/test/rig/process"
	"floatip.io/floatip/test/story"
)

const cloudConfig = "#cloud-config\nhostname: web\n"

// guestHints starts VMs with user data of several kinds. KubeVirt's own webhooks accept what floatip made of them, the
// VMs themselves stay as they were written, and what is left alone is told by an event.
func guestHints(t *testing.T, s *story.Story) {
	encoded := func(text string) kubevirtv1.CloudInitNoCloudSource {
		return kubevirtv1.CloudInitNoCloudSource{UserDataBase64: base64.StdEncoding.EncodeToString([]byte(text))}
	}
	entry := func(vm *kubevirtv1.VirtualMachine) string {
		return fmt.Sprintf("write_files:\n- path: \"/etc/floatip/floating-ip\"\n  content: \"%s\\n\"\n",
			vm.Annotations[floatip.AnnotationAddress])
	}
	for _, tc := range []struct {
		name   string
		source kubevirtv1.CloudInitNoCloudSource
		// want are the user data of the VMI; nil if they are left alone.
		want func(vm *kubevirtv1.VirtualMachine) string
	}{
		{"hint-config", encoded(cloudConfig), func(vm *kubevirtv1.VirtualMachine) string { return cloudConfig + entry(vm) }},
		{"hint-network", kubevirtv1.CloudInitNoCloudSource{NetworkData: "version: 2\n"},
			func(vm *kubevirtv1.VirtualMachine) string { return "#cloud-config\n" + entry(vm) }},
		{"hint-text", encoded(`Hi.\n`), nil},
		{"hint-long", encoded(cloudConfig + strings.Repeat("#", 2048-len(cloudConfig))), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := bounded(t)
			vm := startWith(t, s, tc.name, tc.source)
			vmi := waitVMI(ctx, t, s, vm)
			before, after := vm.Spec.Template.Spec.Volumes, vmi.Spec.Volumes
			want := userData(t, before)
			if tc.want != nil {
				want = tc.want(vm)
			}
			if got := userData(t, after); got != want {
				t.Errorf("user data %q, want %q", got, want)
			}
			if got, want := vmi.Spec.Domain.Chassis.Asset, "floatip="+vm.Annotations[floatip.AnnotationAddress]; got != want {
				t.Errorf("asset tag %q, want %q", got, want)
			}
			if got, want := userData(t, before), userData(t, []kubevirtv1.Volume{cloudInit(tc.source)}); got != want {
				t.Errorf("the VM's own user data are %q, want %q", got, want)
			}
			if tc.want == nil {
				if _, err := s.WaitEvent(ctx, vm, "FloatingIPHintSkipped"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// startWith creates a VM that has the user data and that no node will take: hints are given before scheduling.
func startWith(
	t *testing.T, s *story.Story, name string, source kubevirtv1.CloudInitNoCloudSource,
) *kubevirtv1.VirtualMachine {
	t.Helper()
	vm := &kubevirtv1.VirtualMachine{}
	vm.Namespace, vm.Name = story.Namespace, name
	always := kubevirtv1.RunStrategyAlways
	vm.Spec.RunStrategy = &always
	vm.Spec.Template = &kubevirtv1.VirtualMachineInstanceTemplateSpec{Spec: kubevirtv1.VirtualMachineInstanceSpec{
		NodeSelector: map[string]string{"example.com/none": "true"},
		Networks:     []kubevirtv1.Network{*kubevirtv1.DefaultPodNetwork()},
		Volumes:      []kubevirtv1.Volume{cloudInit(source)},
	}}
	domain := &vm.Spec.Template.Spec.Domain
	domain.Devices.Interfaces = []kubevirtv1.Interface{*kubevirtv1.DefaultMasqueradeNetworkInterface()}
	domain.Devices.Disks = []kubevirtv1.Disk{{Name: "seed"}}
	memory := resource.MustParse("64Mi")
	domain.Memory = &kubevirtv1.Memory{Guest: &memory}
	if err := s.Client.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Client.Delete(context.WithoutCancel(t.Context()), vm); err != nil {
			t.Errorf("delete VM %s: %v", name, err)
		}
	})
	return vm
}

func cloudInit(source kubevirtv1.CloudInitNoCloudSource) kubevirtv1.Volume {
	return kubevirtv1.Volume{Name: "seed", VolumeSource: kubevirtv1.VolumeSource{CloudInitNoCloud: &source}}
}

func waitVMI(
	ctx context.Context, t *testing.T, s *story.Story, vm *kubevirtv1.VirtualMachine,
) *kubevirtv1.VirtualMachineInstance {
	t.Helper()
	vmi := &kubevirtv1.VirtualMachineInstance{}
	err := process.Wait(ctx, nil, "the VMI of "+vm.Name, func(ctx context.Context) error {
		return s.Client.Get(ctx, client.ObjectKeyFromObject(vm), vmi)
	})
	if err != nil {
		t.Fatal(err)
	}
	return vmi
}

// userData returns the decoded user data of the first volume.
func userData(t *testing.T, volumes []kubevirtv1.Volume) string {
	t.Helper()
	source := volumes[0].CloudInitNoCloud
	raw, err := base64.StdEncoding.DecodeString(source.UserDataBase64)
	if err != nil {
		t.Fatal(err)
	}
	return source.UserData + string(raw)
}
