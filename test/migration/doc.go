// Package migration shows that live migration of real guests breaks no connection through a floating address.
package migration
