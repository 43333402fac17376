// Package story holds what a person does with floatip on the rig, and how a person looks at the outcome: install,
// create a VM, start it, reach it. The demo tells it once, the tests tell it in variations. Every look is at the real
// thing: the API server's objects, the kernel's tables, a packet that went from one machine to another.
package story
