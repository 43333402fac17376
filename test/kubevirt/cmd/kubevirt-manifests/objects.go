package main

import (
	"net/netip"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	virtv1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/pointer"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/rbac"
)

func namespaceObject(name string) runtime.Object {
	return &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			// virt-operator labels its namespace so; Pod Security would refuse virt-handler otherwise.
			"kubevirt.io": "", "pod-security.kubernetes.io/enforce": "privileged",
		}},
	}
}

// roles are service accounts, roles and bindings of the programs, and the roles for users of the API.
func roles(namespace string) []runtime.Object {
	const watchesNetworkAttachments = false // no such CRD in the rig
	var objects []runtime.Object
	objects = append(objects, rbac.GetAllCluster()...)
	objects = append(objects, rbac.GetAllApiServer(namespace)...)
	objects = append(objects, rbac.GetAllController(namespace, watchesNetworkAttachments)...)
	objects = append(objects, rbac.GetAllHandler(namespace)...)
	return append(objects, components.NewKubeVirtPriorityClassCR())
}

// kubeVirt is the object that configures KubeVirt, with the status that virt-operator leaves after an installation.
// Emulation is on, so that pods do not ask nodes for devices.kubevirt.io/kvm: the rig's guest is emulated.
func kubeVirt(namespace string) runtime.Object {
	return &virtv1.KubeVirt{
		TypeMeta:   metav1.TypeMeta{APIVersion: virtv1.GroupVersion.String(), Kind: "KubeVirt"},
		ObjectMeta: metav1.ObjectMeta{Name: "kubevirt", Namespace: namespace},
		Spec: virtv1.KubeVirtSpec{
			ImagePullPolicy: corev1.PullIfNotPresent,
			Configuration: virtv1.KubeVirtConfiguration{
				DeveloperConfiguration: &virtv1.DeveloperConfiguration{UseEmulation: true},
			},
		},
		Status: virtv1.KubeVirtStatus{Phase: virtv1.KubeVirtPhaseDeployed, DefaultArchitecture: "amd64"},
	}
}

// service is virt-api's Service with its one endpoint.
func service(namespace string, virtAPI netip.AddrPort) []runtime.Object {
	svc := components.NewApiServerService(namespace)
	svc.Spec.Selector = nil
	svc.Spec.Ports[0].TargetPort = intstr.FromInt32(int32(virtAPI.Port()))
	family := discoveryv1.AddressTypeIPv4
	if virtAPI.Addr().Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Name: svc.Name, Namespace: namespace,
			Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: "rig"},
		},
		AddressType: family,
		Ports: []discoveryv1.EndpointPort{{
			Name: pointer.P(svc.Spec.Ports[0].Name), Port: pointer.P(int32(virtAPI.Port())),
			Protocol: pointer.P(corev1.ProtocolTCP),
		}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{virtAPI.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: pointer.P(true)},
		}},
	}
	return []runtime.Object{svc, slice}
}

// webhooks are virt-api's admission webhooks and its aggregated API, which trust KubeVirt's authority.
func webhooks(namespace string, bundle []byte) []runtime.Object {
	var objects []runtime.Object
	for _, config := range []*admissionv1.MutatingWebhookConfiguration{
		components.NewVirtAPIMutatingWebhookConfiguration(namespace),
		components.NewVirtLauncherPodMutatingWebhookConfiguration(namespace),
	} {
		for i := range config.Webhooks {
			config.Webhooks[i].ClientConfig.CABundle = bundle
		}
		objects = append(objects, config)
	}
	validating := components.NewVirtAPIValidatingWebhookConfiguration(namespace)
	for i := range validating.Webhooks {
		validating.Webhooks[i].ClientConfig.CABundle = bundle
	}
	objects = append(objects, validating)
	for _, service := range components.NewVirtAPIAPIServices(namespace) {
		service.Spec.CABundle = bundle
		objects = append(objects, service)
	}
	return objects
}
