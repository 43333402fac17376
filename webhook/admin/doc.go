// Package admin lets people ask the ledger, and decide what floatip does not decide by itself: disputes, and addresses
// of VMs that only the ledger remembers.
//
// A Book answers from an open ledger. The running webhook serves its Book on a unix socket (Server), a Client asks it
// from a second process in the same container, and a File is the Book of a copied ledger, which answers and changes
// nothing. The messages are JSON over HTTP, each of bounded size; whoever may open the socket, the container's own
// user, may ask.
//
// The package knows no Kubernetes: what the cluster shows comes through the interface Cluster.
package admin
