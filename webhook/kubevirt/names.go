package kubevirt

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Labels and annotations that KubeVirt puts on pods.
const (
	// LabelApp is "virt-launcher" on the pods that carry guests, and on temporary copies of them
	// (pkg/virt-controller/services/template.go).
	LabelApp    = "kubevirt.io"
	AppLauncher = "virt-launcher"

	// LabelCreatedBy is the UID of the VMI that a pod was made for.
	LabelCreatedBy = "kubevirt.io/created-by"

	// AnnotationTemporary marks a pod that only makes a storage provisioner bind volumes, and runs no guest
	// (pkg/virt-controller/services/template.go, RenderLaunchManifestNoVm).
	AnnotationTemporary = "kubevirt.io/ephemeral-provisioning"

	// AnnotationRestored is on a VM that a snapshot's restore or a clone made or changed
	// (pkg/storage/snapshot/restore.go).
	AnnotationRestored = "restore.kubevirt.io/lastRestoreUID"
)

// DefaultNamespace is where KubeVirt is installed, unless somebody chose otherwise.
const DefaultNamespace = "kubevirt"

// accounts are KubeVirt's service accounts (pkg/apimachinery/serviceaccounts).
var accounts = []string{
	"kubevirt-apiserver", "kubevirt-controller", "kubevirt-handler", "kubevirt-synchronization-controller",
}

// ControllerUser is the user that makes VMIs and pods.
func ControllerUser(namespace string) string { return serviceAccount(namespace, "kubevirt-controller") }

// Users are all users that KubeVirt acts as.
func Users(namespace string) []string {
	users := make([]string, len(accounts))
	for i, a := range accounts {
		users[i] = serviceAccount(namespace, a)
	}
	return users
}

// serviceAccount is the user name of a service account (k8s.io/apiserver pkg/authentication/serviceaccount).
func serviceAccount(namespace, name string) string {
	return "system:serviceaccount:" + namespace + ":" + name
}

// OwnerOf returns the controlling owner if it is of KubeVirt's kind.
func OwnerOf(references []metav1.OwnerReference, kind string) (metav1.OwnerReference, bool) {
	for _, r := range references {
		if r.Controller != nil && *r.Controller && r.Kind == kind && group(r) == GroupVersion.Group {
			return r, true
		}
	}
	return metav1.OwnerReference{}, false
}

// VMOf returns the VirtualMachine that controls the VirtualMachineInstance with that name and these references. KubeVirt
// gives an instance the name of its VM. Whoever may create instances may write such a reference too: it proves nothing.
func VMOf(name string, references []metav1.OwnerReference) (metav1.OwnerReference, bool) {
	vm, ok := OwnerOf(references, KindVM)
	return vm, ok && vm.Name == name
}

// IsPool reports whether a VirtualMachinePool made the object.
func IsPool(r metav1.OwnerReference) bool {
	return r.Kind == "VirtualMachinePool" && group(r) == "pool.kubevirt.io"
}

func group(r metav1.OwnerReference) string {
	g, _, _ := strings.Cut(r.APIVersion, "/")
	return g
}
