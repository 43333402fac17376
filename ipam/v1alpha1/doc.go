// Package v1alpha1 holds the API types of the group floatip.io: FloatingIPPool, which an administrator writes, and
// FloatingIP, which floatip writes, one for each address that is held.
//
// +kubebuilder:object:generate=true
// +groupName=floatip.io
package v1alpha1
