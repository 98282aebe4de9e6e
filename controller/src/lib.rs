//! The library of `virt-backup`: backs up libvirt guests by showing their disks as chunks.
